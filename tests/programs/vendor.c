/* A library of which tests make several: -DANSWER=1 … tells them apart. */
int answer(void)
{
    return ANSWER;
}
